"""A text under each preset: what leaves, what it costs, what the best attacker makes of it; a reply restored.

python examples/sanitize.py
"""

from transom import Placeholders, Sanitizer, load_policy, with_preset

TEXT = "Thank my colleague Marguerite Okafor, who paid 4815 dollars for my cancer treatment."

for preset in ("entities", "sensitive", "words"):
    sanitizer = Sanitizer(with_preset(load_policy(), preset))
    placeholders = Placeholders()
    safe = sanitizer.sanitize(TEXT, placeholders=placeholders)
    guess = sanitizer.bayes_guess(safe)
    print(f"{preset}")
    print("  leaves:    ", safe.text)
    print("  epsilon:   ", safe.epsilon)
    print("  promise:   ", sanitizer.guarantee(safe).adjacency)
    print(f"  attacker:   {guess.recovered} of {guess.words} drawn ({guess.chance:.0%} without looking)")
    print("  comes back:", placeholders.restore("Thank you, [PERSON_1]!"))
