"""Decide where labels go: `probe` measures models as they are, `pilot` runs short stages and predicts the full ones.

| file | content |
|---|---|
| fits | straight lines through accuracies, with a bootstrap over problems |
| law | what more labels do: log(1 - G) = a - b log n |
| transfer | what the bridge does: G linear in the travel from the student's start |
| prediction | candidates, their predicted accuracies and the verdict |
| halving | who gets more pilot |
| guards | a teacher's gap to the student |
"""
