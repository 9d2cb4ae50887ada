"""Any source as tars of small pictures with an index: a folder, a table of links, tars behind https:// or s3://.

python examples/pack.py photos/ packed 128
python examples/pack.py links.csv packed        # a column `url` and a column `caption`: the pictures are downloaded
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str = "demo:emoji", out: str = "runs/example-pack", size: str = "256") -> None:
    made = clipling.pack(source, Path(out), size=size)  # called again, it goes on where it was stopped
    print(f"{made['pairs']} pairs in {made['shards']} tars, {made['bytes'] / 1e6:.1f} MB; left out: {made['left_out'] or 'none'}")
    info = clipling.inspect(out, size=64)
    print(f"{info['loading']['exact']:.0f} pairs a second are decoded by one process; {info['loading']['said']}")


if __name__ == "__main__":
    script(main)
