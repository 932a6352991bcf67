"""Write the golden files anew."""

from tests.cuda_double.golden import GOLDEN, texts

found = texts()
GOLDEN.mkdir(exist_ok=True)
for old in GOLDEN.iterdir():
    if old.name not in found:
        old.unlink()
for name, text in found.items():
    (GOLDEN / name).write_text(text)
