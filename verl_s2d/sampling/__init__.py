"""Completions of token-id prompts from a model that does not change: the teacher's rollouts and the evaluation.

`engine` is vLLM's offline engine with one model; `prompts` makes token ids of problems; `request` says what to sample;
`shards` are the files that outlive a kill; `shard_worker` keeps one engine busy, `engine_pool` several, as Ray actors;
`complete` samples what is missing. Needs no verl, and no Ray for one engine on a CPU.
"""

PARTS = ".samples"
"""Where the parts lie, below the directory of the result. Hidden: what is in such a one is no output of a stage."""
