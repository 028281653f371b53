"""Does any file, valid or nearly so, get bnfold to fail, to run code, or to fold wrongly?

python -m benchmarks.fuzz --minutes 60                   all formats in turn
python -m benchmarks.fuzz --minutes 5 --format onnx      one of them
python -m benchmarks.fuzz --cases 50 --seed 7            so many of each

Each case is a random model of a format, valid as it is (`seeds.py`) or with up to three mistakes
(`mutations.py`). `bnfold fold` meets it, and now and then another command, each in a watched fork
(`tests/hostile/warm.py`) and by the rules of `tests/hostile/case.py`: no code runs, no traceback,
exit 0 to 3, time and memory bounded, nothing left behind. What was folded is run by the plain
library, beside the original, on the same inputs (`comparing.py`).

A case is made from the seed, the format and its number alone. What fails is kept in a folder, with
the command that shows it.
"""
