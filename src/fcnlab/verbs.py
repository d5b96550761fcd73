"""The commands of fcnlab."""

# In the order of the help, with a sentence on each.
VERBS = {
    "train": "train a network; writes checkpoints, scores, curves and images to outputs/",
    "eval": "evaluate a checkpoint: mIoU and three more scores, per class and per image",
    "predict": "segment images: palette PNGs and overlays",
    "doctor": "check a data set and this machine for problems",
    "compare": "compare runs: tables, confidence intervals, significance tests, an HTML page",
    "figure": "draw images, predictions of several runs and ground truth side by side: PDF and PNG",
    "card": "write a model card of a checkpoint: scores, training, limits; for the Hugging Face Hub",
    "bench": "measure speed and memory, and compare them with other libraries",
}
