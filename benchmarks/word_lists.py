"""Put the public word lists into a policy, whose groups, scores and prior stay as they are.

    python benchmarks/word_lists.py --lists FOLDER --out english.safetensors

The lists are those of `transom words build --lists`. It prints how many words each has, and their share of
running text, by the policy's public frequencies, among the words that may be drawn.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from transom.privacy.listed import LIST_FILES, read_lists
from transom.privacy.policy import Policy, load_policy, write_policy

GEONAMES = (
    "Names of places derive from GeoNames (geonames.org), licensed under the Creative Commons Attribution "
    "4.0 License; they were reduced to single lower-case words."
)


def with_lists(policy: Policy, folder: Path, wordnet: Path, out: Path) -> Policy:
    """`policy` with lists, written to `out`."""
    lists, phrases = read_lists(folder, wordnet, policy.words)
    sources = dict.fromkeys([*policy.sources, *LIST_FILES])
    return write_policy(
        out,
        words=policy.words,
        starts_G1=policy.partition.starts_G1,
        scores_S=policy.partition.scores_S,
        prior_V=policy.prior_V,
        pass_words=policy.pass_words,
        kinds=policy.rules,
        name=policy.name,
        language=policy.language,
        mechanism=policy.mechanism,
        licence_notices=list(dict.fromkeys([*policy.licence_notices, GEONAMES])),
        sources=list(sources),
        polarity_coherent=policy.polarity_coherent,
        pass_share=policy.pass_share,
        names=policy.names,
        listed=lists,
        phrases=phrases,
    )


def main() -> None:
    """Read the policy, add the lists, count them."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--policy", type=Path, help="policy file; without it the one that ships")
    flags.add_argument("--lists", type=Path, required=True, help="folder of the public lists")
    flags.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    flags.add_argument("--out", type=Path, required=True)
    args = flags.parse_args()
    made = with_lists(load_policy(args.policy), args.lists, args.wordnet, args.out)
    share = Counter[str]()
    for word, prior in zip(made.words, made.prior_V.tolist(), strict=True):
        share[made.listed.get(word, "none")] += prior
    sizes = Counter(made.listed.values())
    kinds = {kind: {"words": sizes[kind], "share": round(share[kind], 4)} for kind in sorted(sizes)}
    print(json.dumps({"sha256": made.sha256, "bytes": args.out.stat().st_size, "lists": kinds}, indent=2))


if __name__ == "__main__":
    main()
