"""The texts of m1, a family of models for medical questions (arXiv 2504.00869).

Fine-tuned from Qwen2.5, whose tokenizer and template say nothing of them. Knows texts
alone.
"""

START = "<|im_start|>think"
END = "<|im_start|>answer"
# Where the budget ends thinking: a line of its own, and how the answer begins then.
CUT = f"\n{END}\nFinal Answer:"
