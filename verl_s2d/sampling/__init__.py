"""Completions of token-id prompts from a model that does not change: the teacher's rollouts and the evaluation.

`engine` is vLLM's offline engine with one model; `prompts` makes token ids of problems; `request` says what to sample;
`parts` are the files that outlive a kill; `replica` keeps one engine busy, `replicas` several, in processes of their
own; `complete` samples what is missing. Needs neither verl nor Ray.
"""

PARTS = ".samples"
"""Where the parts lie, below the directory of the result. Hidden: what is in such a one is no output of a stage."""
