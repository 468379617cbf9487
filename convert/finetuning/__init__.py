"""Fine-tune a checkpoint of any layout, and convert the result: `run.finetune`."""
