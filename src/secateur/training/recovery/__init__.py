"""What a pruned model learns with beyond one LoRA at one rate: more parameters, new beginnings, rates of their own."""
