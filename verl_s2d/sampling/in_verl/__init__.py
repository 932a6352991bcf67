"""Sample a prompt's rollouts together inside verl: one request, one scoring call, one write a prompt.

verl asks the balancer, the server and the reward worker anew for each rollout, and writes each by itself. For short
answers these calls cost more than the model does: of a step of the quickstart, 256 answers of four tokens, they are
two thirds.
"""
