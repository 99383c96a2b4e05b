"""Winograd's convolution against float64, and what else it promises"""
import pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from cleftgan_nb import ops
from cleftgan_nb.networks import layers
from cleftgan_nb.ops import winograd
from cleftgan_nb.ops.winograd import conv3x3, pays


def numbers(seed, *shape): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(x, w, padding):
    truth = F.conv2d(x.double(), w.double(), padding=padding)
    y = conv3x3(x, w, padding)
    assert y.shape == truth.shape and y.dtype == torch.float32 and y.is_contiguous()
    return ((y - truth).norm()/truth.norm().clamp_min(1e-30)).item()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3), c=st.integers(1, 20), o=st.integers(1, 20), h=st.integers(1, 70), w=st.integers(1, 70),
       padding=st.integers(0, 3), seed=st.integers(0, 99))
def test_any_size_agrees_with_float64(n, c, o, h, w, padding, seed):
    padding = max(padding, (4 - min(h, w)) // 2)
    assert error(numbers(seed, n, c, h, w), numbers(seed + 1, o, c, 3, 3), padding) < 3e-6


# several groups of channels, several blocks
@pytest.mark.parametrize('c, o, size, padding', [(512, 300, 37, 2), (512, 8, 300, 1), (81, 51, 150, 2)])
def test_layers_of_published_size_agree_with_float64(c, o, size, padding):
    assert error(numbers(0, 1, c, size, size), numbers(1, o, c, 3, 3), padding) < 3e-6


@pytest.mark.parametrize('n, c, o', [(0, 3, 2), (2, 3, 0), (2, 0, 3)])
def test_nothing_gives_nothing(n, c, o):
    y = conv3x3(torch.ones(n, c, 5, 6), torch.ones(o, c, 3, 3), 1)
    assert y.shape == (n, o, 5, 6) and not y.any()


def test_bytes_depend_neither_on_threads_nor_on_the_batch(threads):
    x, w = numbers(0, 3, 70, 45, 51), numbers(1, 33, 70, 3, 3)
    threads(1)
    one = conv3x3(x, w, 2)
    for n in (2, 3, 5):
        threads(n)
        assert torch.equal(conv3x3(x, w, 2), one)
    assert torch.equal(conv3x3(x[1:2], w, 2), one[1:2])


def test_views_and_channels_last():
    x, w = numbers(0, 2, 10, 31, 33), numbers(1, 6, 10, 3, 3)
    y = conv3x3(x, w, 1)
    assert torch.equal(conv3x3(x.contiguous(memory_format=torch.channels_last),
                               w.contiguous(memory_format=torch.channels_last), 1), y)
    assert torch.equal(conv3x3(x.mT.contiguous().mT, w, 1), y)
    assert torch.equal(conv3x3(x[:, :, 3:, 2:], w, 1), conv3x3(x[:, :, 3:, 2:].clone(), w, 1))


def test_what_is_not_a_number_stays_where_it_is():
    x, w = numbers(0, 1, 4, 64, 64), numbers(1, 3, 4, 3, 3)
    clean = conv3x3(x, w, 1)
    x[0, 0, 0, 0] = float('nan')
    y = conv3x3(x, w, 1)
    assert (y[..., :2, :2].isnan().any() and torch.equal(y[..., 4:, :], clean[..., 4:, :])
            and torch.equal(y[..., 4:], clean[..., 4:]))


def test_gradients_are_refused():
    x, w = numbers(0, 1, 4, 8, 8).requires_grad_(), numbers(1, 3, 4, 3, 3)
    with pytest.raises(ValueError, match='x requires grad'): conv3x3(x, w)
    with torch.no_grad(): assert conv3x3(x, w).shape == (1, 3, 6, 6)


@pytest.mark.parametrize('padding', [-1, 1.0, True, None])
def test_padding_is_a_whole_number(padding):
    with pytest.raises(ValueError, match='padding='): conv3x3(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding)


def test_networks_take_it_only_where_they_may(monkeypatch):
    monkeypatch.setattr(winograd, '_many_registers', lambda: True)
    calls, original = [], winograd.conv3x3
    monkeypatch.setattr(winograd, 'conv3x3', lambda *args: (calls.append(1), original(*args))[1])
    x, w = numbers(0, 1, 32, 70, 70), numbers(1, 32, 32, 3, 3)
    y = layers.conv2d(x, w, 2)
    assert len(calls) == 1 and pays(x, w, 2)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=2), atol=1e-3, rtol=0)
    with ops.use_impl('definition'): layers.conv2d(x, w, 2)
    with torch.autocast('cpu', torch.bfloat16): assert layers.conv2d(x, w, 2).dtype == torch.bfloat16
    layers.conv2d(x, w.clone().requires_grad_(), 2).sum().backward()
    layers.conv2d(x, w, 2, stride=2)
    layers.conv2d(x.bfloat16(), w.bfloat16(), 2)
    assert len(calls) == 1
    with torch.inference_mode(): assert torch.equal(layers.conv2d(x, w, 2), y)
    assert len(calls) == 2


def test_two_threads_work_in_less_than_16_mb():
    k = winograd.grid((1, 512, 148, 148), 512, 2, 2)
    a_thread = 16*k.apart*(k.channels + k.some)
    assert 4*2*a_thread < 16 << 20
