"""Metrics: how good is one answer? By family, with scores of whole sets, and the registry that names them.

A metric is a plain function `(prediction, references) -> score in [0, 1]`; with several references the best match
counts. Task files name one (`metric: rougeL`), give settings where it takes any (`metric: {name: judge, model: ...}`),
or point at the user's own (`metric: mymodule:score`).
"""
