"""One file a part: `run(settings, record)` measures, and records every figure with its limit."""
