"""Sanitise a text, say what it cost and what the best attacker makes of it, restore a reply.

python examples/sanitize.py
"""

from transom import Placeholders, Sanitizer, load_policy

sanitizer = Sanitizer(load_policy())
placeholders = Placeholders()
safe = sanitizer.sanitize(
    "My colleague Marguerite paid 4815 dollars for the old house.", placeholders=placeholders
)
guess = sanitizer.bayes_guess(safe)

print("leaves:   ", safe.text)
print("epsilon:  ", safe.epsilon)
print("promise:  ", sanitizer.guarantee(safe).adjacency)
print(f"attacker:  {guess.recovered} of {guess.words} drawn words ({guess.chance:.0%} without looking)")
print("comes back:", placeholders.restore("[NAME_1] paid [NUMBER_1]."))
