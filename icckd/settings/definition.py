"""Every setting of a run but those of its methods."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from icckd.settings.losses import StudentLossSettings, TeacherLossSettings

STAGES = ("teacher", "student")
_STAGE_OF_GROUP = {"teacher": "teacher", "student": "student", "federated": "student"}


def stage_of(setting: str) -> str | None:
    """The one stage that a setting, by dotted name, concerns; None: both."""
    return _STAGE_OF_GROUP.get(setting.partition(".")[0])


@dataclass
class AugmentationSettings:
    """How training images are varied, each view anew.

    Args:
        crop_padding: Pad by so many zero pixels a side and crop at a random place (null: as usual for the data set, or
            0 beside resized_crop; 0: do not).
        flip: Mirror left to right with probability 1/2 (null: as usual for the data set).
        rotation: Turn by a random angle of at most so many degrees, bilinearly, zero outside.
        resized_crop: Crop a random box, its area between these two fractions of the image's and its aspect ratio
            between 3/4 and 4/3, and resize it to the image's size, bilinearly ("[0.08, 1.0]", quoted for the shell, is
            usual; null: do not).
    """

    crop_padding: int | None = None
    flip: bool | None = None
    rotation: float = 0.0
    resized_crop: list[float] | None = None


@dataclass
class StrongAugmentationSettings(AugmentationSettings):
    """How the strong views are varied of teachers that learn from weak and strong ones (this project's choice)."""

    rotation: float = 15.0
    resized_crop: list[float] | None = field(default_factory=lambda: [0.5, 1.0])


@dataclass
class ClassAugmentationSettings:
    """Milder crops for the classes that strong ones make rivals of others (Kirichenko et al. 2023, arXiv 2401.01764).

    Before the teacher networks like it are trained on a part of the training images, with a lower bound each of the
    crop's area, and asked about the rest. The classes whose false positives, images of others that are called theirs,
    are fewest below those of the strongest crop keep the bound of their fewest; teacher and student are then trained on
    all training images.

    Args:
        classes: How many classes have a milder crop, at most (0: none, and nothing is tried).
        areas: The lower bounds to try, fractions of the image's area, beside that of augmentation.resized_crop, which
            is the strongest: what is not above that, or above its upper bound, counts for nothing.
        holdout: The fraction of the training images, class by class, on which false positives are counted.
        epochs: Passes over the other training images, with each bound (null: the teacher's epochs).
    """

    classes: int = 0
    areas: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 1.0])
    holdout: float = 0.2
    epochs: int | None = None

    def tried(self, crop: Sequence[float]) -> list[float]:
        """The lower bounds to try where `crop` holds both bounds of the strongest crop: its own, then rising ones."""
        low, high = crop
        return [low, *sorted({area for area in self.areas if low < area <= high})]


def shown_name(name: str, root: str | None, labels: str | None) -> str:
    """What people read of the data set `name`: made-up signals, and coarse classes, are called so."""
    if name == "signals" and root is None:
        return "synthetic signals"
    return f"the coarse classes of {name}" if labels == "coarse" else name


@dataclass
class DataSettings:
    """The images, or signals, to train and test on.

    Args:
        name: The data set. Digits are built in, and so are synthetic signals, where root is null; the others are read
            from root. signals are windows of sensor signals, each of a person at an activity, which is its class; arch
            signal-convnet and signal-convnet-small are made for them, and most others take them too. They are not
            scaled, and not augmented.
        root: Folder that holds the data set's files (not needed for digits). Nothing is ever downloaded. That of
            signals holds .npz files with the arrays signals (N, channels, length), activity (N,) and person (N,); or
            .csv files of a row per time step with the columns window, person, activity and one per channel. A file may
            also be one window: signals (channels, length), or no column window.
        left_out: Of signals, the names of the people whose windows are the test set (null: the last quarter of the
            names, at least one).
        image_size: Resize images to this many pixels a side (image-folder and tiny-imagenet only; null: as they are).
        validation: Hold out this fraction of the training images, class by class, and report on them instead of
            the test images: choose settings with it, then set it back to 0. Of signals it is this fraction of the
            other people, the last of them, at least one.
        train_fraction: Train on this fraction of the training images (of those left by validation), class by class, at
            least one of each; the same images whatever the seed.
        labels: Train on the data set's fine classes, which are its usual ones, or on coarse ones (cifar100: its 20;
            cifar10: animals and vehicles; digits: even and odd). With coarse, fine_probe in the summary tells what
            features know of the fine classes, and fine_probe_soft_labels what soft labels do: the accuracy of a ridge
            regression within the true coarse class. validation and train_fraction go by the fine classes, label_noise
            by the coarse ones.
        label_noise: Wrong labels for training images, the same whatever the seed (null: none). symmetric:P, as in
            symmetric:0.4: this fraction of each class's images has one of the other classes, uniformly. partial:Q: a
            set of candidate labels for each image, which holds its class and each other one with this probability;
            methods that want one label have one of them, drawn uniformly.
        mean: Subtracted from each channel of the images, which are scaled to [0, 1] (null, and std too: the training
            images' or signals' mean; streamed: that of 4096 of them at most).
        std: What each channel is then divided by (null, and mean too: the training images' standard deviation;
            streamed: likewise).
        augmentation: How training images are varied.
        strong_augmentation: How the strong views are varied of teachers that learn from weak and strong ones.
        class_augmentation: Milder crops for the classes that strong ones make rivals of others.
        sampler: The order of the training images, anew for every epoch, in which each comes once: random, or
            class-balanced, in batches of samples_per_class images of each of classes_per_batch classes. The last few
            batches hold what is left of classes of other sizes.
        classes_per_batch: Class-balanced only: classes in a batch (null: batch_size / samples_per_class, or, where that
            is null too, as many as can be with 2 images or more each). Given both, batch_size counts for nothing: their
            product is the batch.
        samples_per_class: Class-balanced only: images of each class in a batch (null: batch_size / classes_per_batch).
            Given both, batch_size counts for nothing.
        streaming: Leave the images in their files and decode them as they are needed (image-folder only), where memory
            does not hold them. They are of 8 bits and always in colour; resized_crop then cuts its boxes from them as
            they are in their files. To resume, names and sizes of the files are compared.
        workers: Streaming only: processes that decode (null: one per processor; 0: none but the training's own).
    """

    name: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "image-folder", "signals"] = (
        "digits"
    )
    root: str | None = None
    left_out: list[str | int] | None = None
    image_size: int | None = None
    validation: float = 0.0
    train_fraction: float = 1.0
    labels: Literal["fine", "coarse"] = "fine"
    label_noise: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    strong_augmentation: StrongAugmentationSettings = field(default_factory=StrongAugmentationSettings)
    class_augmentation: ClassAugmentationSettings = field(default_factory=ClassAugmentationSettings)
    sampler: Literal["random", "class-balanced"] = "random"
    classes_per_batch: int | None = None
    samples_per_class: int | None = None
    streaming: bool = False
    workers: int | None = None

    @property
    def shown_name(self) -> str:
        """What the data set is called where people read of it."""
        return shown_name(self.name, self.root, self.labels)


@dataclass
class TrainingSettings:
    """What teacher and student training share.

    Args:
        arch: The network's name; `icckd doctor` lists them all.
        epochs: Passes over the training images.
        batch_size: Images per step, of all processes together, unless data.classes_per_batch and data.samples_per_class
            say how many.
        optimizer: Stochastic gradient descent, or one for large batches, whose steps are in proportion to the norm of
            each weight tensor: lars or lamb, which need pip install 'icckd[large-batch]'.
        learning_rate: Peak learning rate; beside rate_scaling, of a batch of 256 images.
        rate_scaling: What learning_rate is multiplied by: nothing, batch_size / 256 (linear; Goyal et al. 2017) or its
            square root (You et al. 2020).
        momentum: Momentum of sgd and lars.
        nesterov: Nesterov's form of it.
        weight_decay: L2 penalty on the weights (not on biases or normalisation parameters, unless decay_all). With lamb
            it is decoupled, and values from 0.1 to 1.5 are usual.
        decay_all: Let every parameter decay, as published code does (sgd and lamb).
        schedule: How the learning rate falls: cosine to zero, or step by step.
        warmup_epochs: Epochs over which the learning rate first rises linearly from zero.
        milestones: Step schedule only: fractions of the training after which the rate falls.
        decay: Step schedule only: what the rate is multiplied by at each milestone.
        drop_last: Leave out an epoch's last batch where it is smaller than the others.
        autocast: Run the network in bfloat16 where that is safe.
        channels_last: Keep images and weights with their channels last in memory, which many processors prefer.
        compile: Compile the network with torch.compile; the first step of each kind takes a minute or so.
        cuda_graph: Replay whole steps as a CUDA graph, captured anew each epoch (one process on a GPU only).
        accumulate: Ask the network about a batch in so many parts, one after another, where a batch is larger than the
            memory. Losses and gradients are those of the whole batch, at the price of a second forward pass; batch
            normalisation sees a part at a time.
        sync_batch_norm: Several processes only: batch normalisation by the images of all, as one process would do it,
            rather than by each process's own.
        shard_parameters: Several processes only: keep a part of the network's parameters, gradients and optimiser state
            in each (FSDP2) rather than a replica of all (DistributedDataParallel).
    """

    arch: str = "convnet-large"
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["sgd", "lars", "lamb"] = "sgd"
    learning_rate: float = 0.1
    rate_scaling: Literal["none", "linear", "square-root"] = "none"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 1.0
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    decay: float = 0.1
    drop_last: bool = True
    autocast: bool = False
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    accumulate: int = 1
    sync_batch_norm: bool = False
    shard_parameters: bool = False


@dataclass
class MemorySettings:
    """A cache of each class's embeddings.

    Args:
        capacity: Cached embeddings per class that serve as further negatives (0: none). They take classes · capacity ·
            numbers per embedding · bytes per number: 1000 · 64 · 512 · 4 = 131 MB.
        dtype: What each number is kept in: 4 bytes for float32, 2 for bfloat16 and float16, 1 for float8 (e4m3, with a
            scale for each embedding), of which a step makes a copy of 2 bytes a number.
        warmup_epochs: Epochs at the start in which embeddings are cached, but are no negatives yet.
        average: Cache the embeddings of an exponential moving average of the teacher, of which each step keeps this
            share, rather than its own: older ones are then nearer to today's, for one more forward pass a step
            (0: its own; 0.99 is usual).
    """

    capacity: int = 0
    dtype: Literal["float32", "bfloat16", "float16", "float8"] = "float32"
    warmup_epochs: int = 0
    average: float = 0.0


@dataclass
class TeacherSettings(TrainingSettings):
    """The teacher and how it is trained.

    Args:
        loss: The teacher's loss.
        memory: A cache of each class's embeddings.
        positive: What an image's embedding is drawn to. second-view: that of its second view. second-view-detached: the
            same without a gradient through it, about a third cheaper. previous-epoch: its own of the epoch before:
            there is no second view at all, and a step costs what it does without the loss, which begins in the second
            epoch. The embeddings take 4 · images · numbers per embedding bytes: 4 · 50,000 · 512 = 102 MB.
        weights: Use this trained teacher instead of training one: a run's teacher/ folder or its model.safetensors, or
            the state dict of a network of RepDistiller, mdistiller or torchvision (.pth), which arch then names.
    """

    loss: TeacherLossSettings = field(default_factory=TeacherLossSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    positive: Literal["second-view", "second-view-detached", "previous-epoch"] = "second-view"
    weights: str | None = None


@dataclass
class StudentSettings(TrainingSettings):
    """The student and how it is distilled.

    Args:
        loss: The student's loss.
    """

    arch: str = "convnet-small"
    loss: StudentLossSettings = field(default_factory=StudentLossSettings)


@dataclass
class EvaluationSettings:
    """When networks are measured, and what is measured of them besides.

    Args:
        attack: Change the test images so that the network errs, and measure what it still names rightly: by one step
            along the gradient's sign (fgsm; Goodfellow et al. 2015) or several from a random start (pgd; Madry et al.
            2018; null: do not). After the last epoch, in class_augmentation's trials not at all.
        epsilon: The most that a pixel may change, of pixels in [0, 1].
        steps: Steps of pgd.
        step_size: What each of them changes a pixel by.
        training_images: Ask the network, whenever it is measured, also about so many training images as they
            are, the same ones whatever the seed and of each class its share: training_accuracy,
            training_intra_class_distance, training_distance_ratio and training_soft_label_entropy tell how far classes
            have collapsed where the loss could see them (0: none).
        every: Measure a network after every so many epochs, and after the last: on few training images the test images
            take as long as an epoch. Lines of other epochs in metrics.jsonl have no measures.
    """

    attack: Literal["fgsm", "pgd"] | None = None
    epsilon: float = 8 / 255
    steps: int = 20
    step_size: float = 2 / 255
    training_images: int = 0
    every: int = 1


@dataclass
class FederatedSettings:
    """How training images and steps are divided among clients, for a student's method that is federated (pkd).

    Args:
        clients: How many clients have a part of the training images each: every image is one client's, and each has
            two or more, the same ones for a seed whatever is trained.
        rounds: How often all of them train and are averaged; student.epochs counts for nothing.
        local_epochs: Passes of a client over its own images in each round.
        skew: Concentration of the Dirichlet distribution that says, class by class, how its images are divided among
            the clients: near 0 a class is one client's, and above 100 all have about the same of each.
    """

    clients: int = 4
    rounds: int = 10
    local_epochs: int = 1
    skew: float = 0.5


@dataclass
class Settings:
    """All settings of a run.

    Args:
        preset: Defaults under everything else that is given. paper: how the literature trains on the data set and
            networks that are given (not digits or fashion-mnist); fast: batches of 1024 or as given, above 8192 by
            lamb, channels last, and on a GPU bfloat16 and compiled networks.
        data: The images to train and test on.
        teacher: The teacher and how it is trained.
        student: The student and how it is distilled.
        evaluation: When networks are measured, and what is measured of them besides.
        federated: How training images are divided among clients, for a student's method that is federated.
        seed: Seed of everything random: the same seed on the same machine gives the same bits.
        device: Where to compute; auto takes a GPU where there is one.
        checkpoint_every: Save a checkpoint every so many steps, besides the one after each epoch (0: epochs only).
    """

    preset: Literal["default", "paper", "fast"] = "default"
    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    federated: FederatedSettings = field(default_factory=FederatedSettings)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 200
