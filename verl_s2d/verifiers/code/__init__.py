"""Verifier `code`: run the program of a response against a problem's tests, here in the sandbox or on SandboxFusion.

| file | holds |
|---|---|
| `code_verifier.py` | the verifier, its options and checks |
| `code_tests.py` | ground truths as data sets write them, read into tests |
| `fenced_code.py` | the program in a response |
| `call_harness.py` | runs in the box: calls a function or evaluates the left side of an assert |
| `same_output.py` | compares what a program gave with what the test expects, outside the box |
| `fusion_client.py` | runs programs on a SandboxFusion service |
"""
