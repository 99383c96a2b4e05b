"""Membership: the area under the curve, its interval, and D's answers in random company"""
import numpy as np, pytest, torch
from scipy.stats import mannwhitneyu

from cleftgan_nb.metrics.membership import VIEWS, answers, auc, membership


def test_area_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    x, y = rng.integers(9, size=30), rng.integers(7, size=40)
    area, low, high = auc(x, y)
    assert area == pytest.approx(mannwhitneyu(x, y).statistic/1200) and 0 < low < area < high < 1
    assert auc(y, x) == pytest.approx((1 - area, 1 - high, 1 - low))
    assert auc([2., 3], [0., 1]) == pytest.approx((1, .025**.5, 1)) and auc([1., 1], [1., 1])[0] == .5


class Grouped(torch.nn.Module):
    "Prefers groups that are alike: what would leak if a group held one kind only"
    def forward(self, x, c): return -x.reshape(-1, 4, x[0].numel()).std(1).mean(1).repeat_interleave(4)[:, None]


def test_groups_do_not_tell_who_was_trained_on():
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.integers(256, size=(1, 8, 8, 3), dtype=np.uint8), 64, 0)
    once, mean = membership(Grouped(), alike, rng.integers(256, size=(70, 8, 8, 3), dtype=np.uint8))
    assert once.value < .99 and once.sizes == dict(training=64, unseen=64) and mean.name == f'membership_auc_mean_of_{len(VIEWS)}'


def test_answers_go_back_to_their_images_with_their_labels():
    images, seen = np.arange(7, dtype=np.uint8)[:, None, None, None]*np.ones((1, 4, 4, 1), np.uint8), []
    def D(x, c):
        seen.append(len(x))
        return x.mean((1, 2, 3))[:, None] + c[:, :1]
    found = answers(D, images, 10*torch.arange(7)[:, None], seed=3, batch=4)
    assert found == pytest.approx(np.arange(7)/127.5 - 1 + 10*np.arange(7), abs=1e-5) and seen == [4, 4]
