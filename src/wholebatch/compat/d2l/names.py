"""The other names of d2l: aliases of torch, and what stands in for names that are not covered."""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: d2l's names of torch's own functions and types, by torch's names.
ALIASES = {
    "abs": "abs", "arange": "arange", "cos": "cos", "cosh": "cosh", "exp": "exp", "eye": "eye", "float32": "float32",
    "int32": "int32", "int64": "int64", "linspace": "linspace", "log": "log", "matmul": "matmul",
    "meshgrid": "meshgrid", "normal": "normal", "ones": "ones", "ones_like": "ones_like", "rand": "rand",
    "randn": "randn", "sigmoid": "sigmoid", "sin": "sin", "sinh": "sinh", "stack": "stack", "tanh": "tanh",
    "tensor": "tensor", "zeros": "zeros", "zeros_like": "zeros_like", "concat": "cat", "batch_matmul": "bmm",
}  # fmt: skip

#: Modules that the book's package imports, and so has under these names.
MODULES = {
    "F": "torch.nn.functional", "Image": "PIL.Image", "collections": "collections", "data": "torch.utils.data",
    "math": "math", "nn": "torch.nn", "np": "numpy", "os": "os", "random": "random", "re": "re", "sys": "sys",
    "time": "time", "torch": "torch",
}  # fmt: skip

#: Methods of tensors that d2l calls as functions, by torch's names.
METHODS = {
    "argmax": "argmax",
    "astype": "type",
    "expand_dims": "unsqueeze",
    "reduce_mean": "mean",
    "reduce_sum": "sum",
    "repeat": "repeat",
    "reshape": "reshape",
    "size": "numel",
    "swapaxes": "swapaxes",
    "to": "to",
    "transpose": "t",
}


def method(name: str) -> Any:
    """Return the function that calls a tensor's method.

    >>> import torch
    >>> method("astype")(torch.tensor([1.5]), torch.int64)
    tensor([1])
    """

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, METHODS[name])(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Return ``x.{METHODS[name]}(…)``."
    return call


def numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return a tensor, with a graph or without, as a NumPy array that shares its memory."""
    return x.detach().numpy(*args, **kwargs)


_DOWNLOADS = "nothing is downloaded here; fetch the files yourself and read them with wholebatch.data or torch"
_LOOP = "use wholebatch.train, or wholebatch.Step in a loop of your own"
_CLASSES = (
    "the classes of the English edition 1.0 (Module, DataModule, Trainer, HyperParameters with add_to_class, and what "
    "is built on them) are not covered; write the model as a torch.nn.Module and train it with wholebatch.train, or "
    "with train_ch3, train_ch6 or train_ch13 of this module"
)
_IMPORT = "import it by itself"
_TEXT = "text and sequence models are not covered; the models of transformers train with wholebatch.Step"
_VISION = "object detection and segmentation are not covered; torchvision has them"
_OWN = "copy its few lines from the book"
_GROUPS = {
    _DOWNLOADS: "DATA_HUB DATA_URL download download_all download_extract extract",
    _LOOP: "train_ch8 train_epoch_ch8 train_ch11 train_concise_ch11 train_seq2seq",
    _CLASSES: "Module DataModule Trainer Classifier HyperParameters add_to_class ProgressBoard FashionMNIST "
    "SyntheticRegressionData LinearRegression LinearRegressionScratch SoftmaxRegression SGD LeNet HPOTrainer "
    "HPOSearcher RandomSearcher HPOScheduler BasicScheduler HPOTuner SuccessiveHalvingScheduler hpo_objective_lenet",
    _IMPORT: "torchvision transforms pd requests display backend_inline hashlib inspect shutil tarfile zipfile "
    "defaultdict distance_matrix",
    _TEXT: "Vocab TimeMachine MTFraEng tokenize RNN RNNScratch RNNLM RNNLMScratch RNNModel RNNModelScratch GRU Encoder "
    "Decoder EncoderDecoder AttentionDecoder Seq2Seq Seq2SeqEncoder bleu masked_softmax sequence_mask truncate_pad "
    "MaskedSoftmaxCELoss MultiHeadAttention AdditiveAttention DotProductAttention PositionalEncoding PositionWiseFFN "
    "AddNorm EncoderBlock TransformerEncoder TransformerEncoderBlock BERTModel BERTEncoder TokenEmbedding predict_ch8 "
    "load_data_time_machine load_corpus_time_machine count_corpus load_data_nmt load_data_imdb load_data_snli "
    "load_data_ptb load_data_wiki read_time_machine seq_data_iter_random seq_data_iter_sequential SeqDataLoader "
    "read_data_nmt preprocess_nmt tokenize_nmt build_array_nmt init_seq2seq read_ptb subsample batchify get_negatives "
    "get_centers_and_contexts RandomGenerator get_tokens_and_segments MaskLM NextSentencePred SNLIDataset "
    "transpose_qkv transpose_output predict_seq2seq predict_sentiment predict_snli read_snli read_imdb",
    _VISION: "box_corner_to_center box_center_to_corner bbox_to_rect multibox_prior multibox_target "
    "multibox_detection box_iou nms show_bboxes BananasDataset load_data_bananas VOCSegDataset load_data_voc "
    "read_voc_images assign_anchor_to_bbox offset_boxes offset_inverse "
    "read_data_bananas VOC_COLORMAP VOC_CLASSES voc_colormap2label voc_label_indices voc_rand_crop",
    _OWN: "corr2d train_2d show_trace_2d annotate show_heatmaps init_cnn get_data_ch11 check_shape check_len rbfkernel "
    "show_list_len_pair_hist read_csv_labels copyfile reorg_train_valid reorg_test ResNeXtBlock "
    "update_D update_G frozen_lake make_env show_value_function_progress show_Q_function_progress",
    "use wholebatch.Timer": "Benchmark",
    "use torch.nn.Module": "nn_Module",
}

#: What to use in place of a name that is not covered.
INSTEAD = {name: repair for repair, names in _GROUPS.items() for name in names.split()}
