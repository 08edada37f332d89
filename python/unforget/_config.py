"""The config's keys as typed keyword arguments. Written by `python/generate_config.py`; do not edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class AuditConfig(TypedDict, total=False):
    """`data.audit`."""

    num_prompts: int
    """Few-shot prompts per fact (if it is not set, a run uses 5 for fewer than 100 new rows and 10 for fewer than
    400).
    """
    shots: int
    """Exemplars in a prompt."""
    samples: int
    """Samples per fact and prompt."""
    sample: bool
    """Draw samples instead of computing their probability."""


class EwcConfig(TypedDict, total=False):
    """`method.ewc`."""

    strength: float
    """Weight of the penalty."""
    previous_runs: Sequence[str]
    """Earlier runs with EWC, in order; each adds a penalty around its saved weights."""
    gamma: float
    """A single penalty instead: name the last run only; the importance that it saved is multiplied by this factor, 0
    to 1.
    """


class ReplayConfig(TypedDict, total=False):
    """`method.replay`."""

    ratio: float
    """Replayed rows per training row."""
    target: Literal["label", "teacher"]
    """The correct answer, or the teacher's distribution."""
    strength: float
    """Weight of the term with target = "teacher"."""
    schedule: Literal["uniform", "ramp"]
    """Ramp: more toward the end."""
    selection: Literal["hardest", "random"]
    """Or random."""


class DecoysConfig(TypedDict, total=False):
    """`method.decoys`."""

    ratio: float
    """Decoys per training row and epoch."""
    pool_ratio: float
    """Decoys in the pool per training row; each epoch draws from it. Default: ratio."""
    strength: float
    """Weight of the term."""
    subjects: Literal["recombined", "sampled"]
    """Subjects put together from tokens of the training subjects; sampled: names that the model gives, which
    continue a list of training subjects.
    """


class InterpolateConfig(TypedDict, total=False):
    """`method.interpolate`."""

    min_retained: float
    """Fraction of the learned facts that must stay learned."""


class ProjectConfig(TypedDict, total=False):
    """`method.project`."""

    energy: float
    """The protected subspace contains this fraction of the summed squared length of the known inputs."""
    every: int
    """Steps between two projections; more saves time."""


class LoraConfig(TypedDict, total=False):
    """`train.lora`."""

    r: int
    """Rank."""
    alpha: int
    """Scale, divided by the rank."""
    target_modules: str | Sequence[str]
    """Linear layers as PEFT names them; all-linear."""
    variant: Literal["lora", "rslora", "dora"]
    """Lora, rslora, dora."""
    dropout: float
    """Probability with which an element of the adapters' input is zeroed in a training step; not with dora, nor with
    L2 or EWC.
    """
    rank_pattern: Mapping[str, int]
    """Other ranks of some layers: { "layers.0.self_attn.q_proj" = 8 }. The longest name that matches counts."""
    alpha_pattern: Mapping[str, int]
    """The same for alpha."""


class EarlyStoppingConfig(TypedDict, total=False):
    """`train.early_stopping`."""

    accuracy: float
    """Stop when this fraction of the new facts is learned, such as 0.99."""
    patience: int
    """Stop after this many evaluations in a row without a smaller validation loss, and keep the best epoch."""


class ConfigKeys(TypedDict, total=False):
    """The keys of `[data]`, `[method]`, `[train]` and `[measure]`, and `model_dtype`."""

    model_dtype: Literal["f32", "stored", "q8_0", "q4_0"]
    """F32, stored, q8_0 or q4_0: how weights under adapters (train.lora) are held. stored: as they lie in the
    model's files; q8_0, q4_0: quantised when the model is loaded.
    """
    validation: Sequence[str]
    """Chats or texts that are never trained; their loss is measured at every evaluation."""
    validation_share: float
    """Instead: a share of the chats and texts of learn, such as 0.05."""
    audit: AuditConfig | Literal[False]
    """How facts are labelled; false uses the files as they are, without labels."""
    min_highly_known: float
    """Relations with a smaller fraction of HighlyKnown facts are left out."""
    match: Literal["exact", "contains"]
    """When an answer is correct: exact, or contains. With chat = true and not set: contains."""
    prompt: str
    """Prompt template with {question}. Default: Q: {question}, a line break, A:."""
    target: str
    """Target template with {object}. Default: a space, {object}, a line break."""
    chat: bool
    """Use the model's chat template. Where chats are learned and it is not set: true."""
    skip_bad_rows: bool
    """Count and list broken rows instead of refusing the file."""
    goal: Literal["facts", "task"]
    """Task learns the task but not the facts."""
    lambda_: float
    """Weight of the distillation term, or of L2."""
    temperature: float
    """Temperature of teacher and student."""
    snapshot_epochs: int
    """Epochs on known facts before the snapshot; 0: the base model itself; more than num_epochs - 1 are reduced,
    with a note.
    """
    vocab_subset: Literal["full"] | Mapping[str, int]
    """Tokens that are compared: full, { top = 76 }, { random = 76 }."""
    teacher: Literal["auto", "online", "base", "hidden", "topk"]
    """How the teacher's outputs are obtained: online, hidden, topk, auto; base is the model without its adapters."""
    reduction: Literal["example", "token"]
    """Mean over examples, or over token."""
    exclude_target: bool
    """Compare all tokens except the target."""
    ewc: EwcConfig
    """Method.ewc."""
    replay: ReplayConfig
    """Method.replay."""
    decoys: DecoysConfig
    """Method.decoys."""
    interpolate: InterpolateConfig
    """Method.interpolate."""
    project: ProjectConfig
    """Method.project."""
    budget: float
    """Forgetting allowed, in percentage points."""
    trainable: str | Sequence[str]
    """K, q, v, o, attn, gate+up, down, ffn, all, or patterns of tensor names, each optionally with layers (ffn@0-9);
    one or a list.
    """
    num_epochs: int
    """All epochs, including those before the snapshot; auto: at most 30."""
    batch_size: int
    """Rows per batch. If it is not set, auto takes 16 rows for facts, or 8 for fewer than 320 of them; any other run
    with fewer than 1,280 new rows takes a power of two that gives at least twenty steps of them, but at least 8
    rows; long rows are split into micro-batches automatically, with the same result up to rounding.
    """
    learning_rate: float
    """Peak learning rate; auto: 4e-4, or 2e-4 for fewer than 320 facts."""
    lr_scheduler: Literal["constant", "cosine", "linear"]
    """Constant, cosine, linear."""
    warmup_steps: int
    """Steps of linear warm-up."""
    warmup_ratio: float
    """The same as a fraction of all steps, rounded up; in place of warmup_steps."""
    betas: tuple[float, float]
    """AdamW."""
    eps: float
    """AdamW."""
    weight_decay: float
    """Decoupled."""
    max_grad_norm: float
    """Gradient clipping; 0 is off."""
    optimizer_in_backward: bool
    """Update each layer as soon as its gradient is computed and hold one layer's gradient at a time. With
    max_grad_norm above 0 it takes twice the time, because the norm needs a separate pass. Not with lora,
    gradient_accumulation_steps above 1, on_nonfinite = "skip", grad_norms, decoys, replay, EWC, kind = "l2", or
    several processes.
    """
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time, the same result."""
    gradient_accumulation_steps: int
    """Batches per step."""
    shuffle: bool
    """False: known facts, then new ones, in file order."""
    max_length: int
    """Tokens; a longer row is an error."""
    truncate: bool
    """Truncate longer rows instead."""
    save_every: int
    """Epochs between checkpoints. Default: every epoch, at most once a minute."""
    lora: LoraConfig
    """Train.lora."""
    early_stopping: EarlyStoppingConfig
    """Train.early_stopping."""
    ema_decay: float
    """Evaluate and save an exponential moving average of the weights; 0.95 is a good value."""
    on_nonfinite: Literal["stop", "skip"]
    """Skip: skip steps with a non-finite loss or gradient, at most ten."""
    drift: bool
    """Measure the drift of representations and answers after every epoch."""
    grad_norms: bool
    """Record the gradient norms of cross-entropy and of the regularisers."""
    paraphrase: bool
    """Also evaluate new facts on paraphrased questions."""
    behaviour: bool | Literal["every"]
    """Compare the answers to 200 general prompts with the base model's, at the end. "every": also at every
    evaluation; false: never.
    """
    every: int
    """Epochs between evaluations; the last epoch is always evaluated."""
    max_facts: int
    """Maximum number of facts of a split per evaluation; a larger split is sampled (seeded). Before and after
    training all facts are evaluated.
    """
    tensorboard: bool
    """Also write TensorBoard event files."""


KEYS = {
    "model_dtype": "model_dtype",
    "validation": "data.validation",
    "validation_share": "data.validation_share",
    "audit": "data.audit",
    "min_highly_known": "data.min_highly_known",
    "match": "data.match",
    "prompt": "data.prompt",
    "target": "data.target",
    "chat": "data.chat",
    "skip_bad_rows": "data.skip_bad_rows",
    "goal": "method.goal",
    "lambda_": "method.lambda",
    "temperature": "method.temperature",
    "snapshot_epochs": "method.snapshot_epochs",
    "vocab_subset": "method.vocab_subset",
    "teacher": "method.teacher",
    "reduction": "method.reduction",
    "exclude_target": "method.exclude_target",
    "ewc": "method.ewc",
    "replay": "method.replay",
    "decoys": "method.decoys",
    "interpolate": "method.interpolate",
    "project": "method.project",
    "budget": "method.budget",
    "trainable": "train.trainable",
    "num_epochs": "train.num_epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler",
    "warmup_steps": "train.warmup_steps",
    "warmup_ratio": "train.warmup_ratio",
    "betas": "train.betas",
    "eps": "train.eps",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "optimizer_in_backward": "train.optimizer_in_backward",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "shuffle": "train.shuffle",
    "max_length": "train.max_length",
    "truncate": "train.truncate",
    "save_every": "train.save_every",
    "lora": "train.lora",
    "early_stopping": "train.early_stopping",
    "ema_decay": "train.ema_decay",
    "on_nonfinite": "train.on_nonfinite",
    "drift": "measure.drift",
    "grad_norms": "measure.grad_norms",
    "paraphrase": "measure.paraphrase",
    "behaviour": "measure.behaviour",
    "every": "measure.every",
    "max_facts": "measure.max_facts",
    "tensorboard": "measure.tensorboard",
}
