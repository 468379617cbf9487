"""Fine-tune BiT by BiT-HyperRule, with transformers' `Trainer` as the engine.

`settings.choose` picks the rule for a data set, `engine.finetune` trains a model by it. Everything random is a
function of the seed and of the place in the training, so that a training that is killed and resumed ends with the
same bits as one that was not.
"""
