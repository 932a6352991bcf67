"""Hold one file per part: `run(settings, record)` measures and records every figure with its limit."""
