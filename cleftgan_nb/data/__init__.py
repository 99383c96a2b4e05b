"Cohorts: a digital phantom, photographs, datasets, cards"
