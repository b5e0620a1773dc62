"""A Qwen2 of random weights with a byte-level tokenizer of Chinese: what vLLM serves where no LLM can be had."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    '学生查询文档，判断是否满足。只答是或否。{"queries": ["问题", "标题"]} '
    "北京的公司成立于二〇一二年，主要产品是手机。"
)


def save(
    folder: str, layers: int = 2, hidden: int = 64, intermediate: int = 128, vocabulary: int = 600,
    texts: tuple[str, ...] = (TEXT,),
) -> int:  # fmt: skip
    """Writes model and tokenizer, which learns its words from `texts`; returns the number of parameters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["是", "否"] * 500 + [*texts] * 50, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=max(vocabulary, len(fast)), hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32,
        max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).float()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())
