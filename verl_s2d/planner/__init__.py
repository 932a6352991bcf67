"""Decide where labels go: `probe` measures models as they are, `pilot` runs short stages and predicts the full ones.

| file | content |
|---|---|
| probe_plan | nodes of the probe: samples of every model, comparisons of the student with each candidate |
| probe_measures | how productive a label is on a model |
| probe_verdicts | what is out of range, and what that costs |
| probe | collects and judges a probe's numbers |
| probe_page | the page of `verl-s2d probe` |
| fits | straight lines through accuracies, with a bootstrap over problems |
| law | what more labels do: log(1 - G) = a - b log n |
| transfer | what the bridge does: G linear in the travel from the student's start |
| prediction | candidates, their predicted accuracies and the verdict |
| halving | who gets more pilot |
| guards | a teacher's gap to the student |
| pilot_plan, pilot_stages | rounds of the pilot, as ordinary nodes |
| pilot, pilot_budget, pilot_page | runs them, writes pilot.json, and the page of `verl-s2d pilot` |
| full_run | checks and costs of what is predicted, and what became of it |
"""
