"""What a training takes at several numbers of pairs, on this machine and on a larger one, and which limit breaks first.

python examples/plan.py 10k,1M,5B ping
"""

from __future__ import annotations

import clipling
from clipling.mistakes import script


def main(pairs: str = "10k,1M,5B", recipe: str = "clip", *settings: str) -> None:
    for machine in ("this", "8xa100"):
        made = clipling.plan(recipe, pairs=pairs, machine=machine, set=settings)
        for plan in made["plans"]:
            print(f"{machine}: {plan['pairs']:,} pairs, {plan['bytes']['all'] / 1e9:,.1f} GB on disk, {plan['hours']['all']:,.1f} hours")
        first = next((limit for limit in made["limits"] if limit["most_pairs"] is not None), None)
        if first:
            print(f"{machine}: {first['name']} breaks first, above {first['most_pairs']:,} pairs. {first['advice']}")


if __name__ == "__main__":
    script(main)
