"""What this distribution offers. Light: nothing here imports torch."""

from typing import Any

from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1


def _spec(name: str, target: str, summary: str, paper: str, **rest: Any) -> MethodSpec:
    return MethodSpec(
        name=name,
        target=f"rib_plugin_cl_methods.{target}",
        summary=summary,
        citation=paper,
        license="Apache-2.0",
        **rest,
    )


@hookimpl
def register_methods() -> list[MethodSpec]:
    """The methods of the paper, and those that its readers would compare with."""
    return [
        # Plain
        _spec("ft", "ft:FineTuning",
              "Plain fine-tuning of all parameters; the baseline.", "arXiv:2410.21582"),
        _spec("lp", "lp:LinearProbing",
              "Trains the head only, on features computed once.", "arXiv:2202.10054",
              trains="head"),
        _spec("lp-ft", "lp_ft:LinearProbingFineTuning",
              "Linear probing, then fine-tuning from that head.", "arXiv:2202.10054",
              needs=("{lp}",), calls=("{second}",)),
        _spec("ema", "ema:MovingAverage",
              "Fine-tuning, keeping a moving average of the weights.",
              "doi:10.1137/0330046"),
        # Few parameters
        _spec("bitfit", "bitfit:BitFit",
              "Trains biases and head only.", "arXiv:2106.10199", trains="biases, head"),
        _spec("lora", "lora:LowRankAdaptation",
              "Trains a low-rank update of frozen weights, then merges it.", "arXiv:2106.09685",
              trains="low-rank updates, head", requires=("qkv:layers=q-v",),
              presets={"paper": {"alpha": 1.0, "layers": "q-v", "train_head": False,
                                 "lr_scale": 1.0}}),
        _spec("dora", "dora:WeightDecomposedAdaptation",
              "LoRA on a weight's direction, with a magnitude of its own.", "arXiv:2402.09353",
              trains="low-rank updates, magnitudes, head"),
        _spec("vera", "vera:VectorAdaptation",
              "LoRA with shared random matrices and trained scales.", "arXiv:2310.11454",
              trains="scales, head", requires=("qkv",)),
        _spec("boft", "boft:ButterflyFinetuning",
              "Rotates the weights by products of small rotations.", "arXiv:2311.06243",
              trains="rotations, head", requires=("qkv",)),
        _spec("adapter", "adapter:Adapters",
              "A small bottleneck behind every MLP.", "arXiv:1902.00751",
              trains="adapters, head", requires=("blocks",), mergeable=False),
        _spec("moa", "moa:MixtureOfAdapters",
              "Low-rank experts of several ranks, one a token.", "arXiv:2310.11031",
              trains="experts, routers, head", requires=("blocks",), mergeable=False),
        _spec("visual-prompt", "visual_prompt:VisualPrompt",
              "A learned border around every image; the model stays.", "arXiv:2203.17274",
              trains="border", mergeable=False,
              presets={"paper": {"lr": 1e-3, "start": "noise"}}),
        _spec("vpt", "vpt:VisualPromptTuning",
              "Learned tokens in a frozen transformer.", "arXiv:2203.12119",
              trains="prompts, head", requires=("blocks",), mergeable=False),
        _spec("nmtune", "nmtune:NoisyModelTuning",
              "A residual net behind frozen features.", "arXiv:2309.17002",
              trains="residual net, head", mergeable=False),
        # Near the pretrained weights
        _spec("l2-sp", "l2_sp:L2SP",
              "Weight decay towards the pretrained weights.", "arXiv:1802.01483"),
        _spec("l1-sp", "l1_sp:L1SP",
              "Charges every weight for the distance it moves.",
              "arXiv:1802.01483; arXiv:2405.16027"),
        _spec("ewc", "ewc:ElasticWeightConsolidation",
              "Holds on to weights in proportion to their Fisher information.",
              "arXiv:1612.00796", version=2, reads=("{data}",),
              presets={"paper": {"fisher": "identity", "lambda": 2.0}}),
        _spec("mas", "mas:MemoryAwareSynapses",
              "Holds on to weights that the logits are sensitive to.", "arXiv:1711.09601",
              reads=("{data}",)),
        _spec("si", "si:SynapticIntelligence",
              "Holds on to weights that did most for the old task.", "arXiv:1703.04200",
              reads=("{old}",)),
        _spec("tpgm", "tpgm:TrainableProjection",
              "Learns on held-out images how far each layer may go.", "arXiv:2303.10720",
              trains="radii", needs=("{base}",), holds_out=0.2),
        _spec("ftp", "ftp:FastTrainableProjection",
              "Projects every update to radii learned along the way.", "arXiv:2310.19182"),
        # Near the pretrained answers or features
        _spec("lwf", "lwf:LearningWithoutForgetting",
              "Keeps the pretrained model's soft answers on the new images.", "arXiv:1606.09282",
              presets={"paper": {"over": "task"}}),
        _spec("feature-distill", "feature_distill:FeatureDistillation",
              "Keeps the pretrained features of the new images.", "arXiv:2405.16027"),
        # Averages of checkpoints
        _spec("wise-ft", "wise_ft:WiseFT",
              "Averages the weights before and after fine-tuning.", "arXiv:2109.01903", version=2,
              trains="nothing", needs=("{base}",)),
        _spec("soup", "soup:UniformSoup",
              "Averages the weights of several methods' checkpoints.", "arXiv:2203.05482",
              version=2, trains="nothing", needs=("*{members}",)),
        _spec("greedy-soup", "greedy_soup:GreedySoup",
              "Averages the checkpoints that help on held-out images.", "arXiv:2203.05482",
              trains="nothing", needs=("*{members}",), holds_out=0.2),
        _spec("model-stock", "model_stock:ModelStock",
              "From θ₀ towards the mean of two fine-tunings.", "arXiv:2403.19522",
              trains="nothing", needs=("*{members}",)),
        _spec("best-of", "best_of:BestOf",
              "Chooses among checkpoints on held-out images (--search).", "arXiv:2007.01434",
              trains="nothing", needs=("*{members}",), holds_out=0.2, chooses=True),
        # With the words of CLIP
        _spec("flyp", "flyp:FinetuneLikeYouPretrain",
              "CLIP's contrastive loss on images and prompts.", "arXiv:2212.00638",
              trains="both towers", requires=("text-tower",)),
        _spec("carot", "carot:CalibratedRobustFinetuning",
              "FLYP with an orthogonal projection and a teacher.", "arXiv:2311.01723",
              trains="both towers", requires=("text-tower", "projection")),
        _spec("lipsum-ft", "lipsum_ft:LipsumFineTuning",
              "Keeps the image's logits against random texts.", "arXiv:2404.00860",
              requires=("text-tower",)),
    ]  # fmt: skip
