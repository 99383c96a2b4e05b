"The study: parameters, runs, recipes and reports"
