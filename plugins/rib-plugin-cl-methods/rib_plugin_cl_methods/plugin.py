"""What this distribution offers. Light: nothing here imports torch."""

from typing import Any

from rib_harness import Knob, MethodSpec, hookimpl

RIB_PLUGIN_API = 1

#: The learning rate, as a multiple of the run's. A method that averages trains what it starts from
#: at the same rates as that method does, so these are made once.
RATE = Knob("recipe.lr", 0.03, 3.0)

#: What a method sets itself that trains by AdamW as its authors do.
ADAMW = ("optimizer", "lr", "weight_decay")


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
              "Plain fine-tuning of all parameters; the baseline.", "arXiv:2410.21582",
              knobs=(RATE,)),
        _spec("lp", "lp:LinearProbing",
              "Trains the head only, on features computed once.", "arXiv:2202.10054",
              trains="head",
              knobs=(Knob("lr", 0.001, 10.0),)),
        _spec("lp-ft", "lp_ft:LinearProbingFineTuning",
              "Linear probing, then fine-tuning from that head.", "arXiv:2202.10054",
              version=2, needs=("{lp}",), calls=("{second}",),
              knobs=(RATE,)),
        _spec("ema", "ema:MovingAverage",
              "Fine-tuning, keeping a moving average of the weights.",
              "doi:10.1137/0330046", version=2,
              knobs=(RATE, Knob("horizon", 0.1, 1.0))),
        # Few parameters
        _spec("bitfit", "bitfit:BitFit",
              "Trains biases and head only.", "arXiv:2106.10199", trains="biases, head",
              knobs=(RATE,)),
        _spec("lora", "lora:LowRankAdaptation",
              "Trains a low-rank update of frozen weights, then merges it.", "arXiv:2106.09685",
              trains="low-rank updates, head", requires=("qkv:layers=q-v",),
              presets={"paper": {"alpha": 1.0, "layers": "q-v", "train_head": False,
                                 "lr_scale": 1.0}},
              knobs=(RATE, Knob("rank", values=(2, 4, 8, 16)))),
        _spec("dora", "dora:WeightDecomposedAdaptation",
              "LoRA on a weight's direction, with a magnitude of its own.", "arXiv:2402.09353",
              trains="low-rank updates, magnitudes, head",
              knobs=(RATE, Knob("rank", values=(2, 4, 8, 16)))),
        _spec("vera", "vera:VectorAdaptation",
              "LoRA with shared random matrices and trained scales.", "arXiv:2310.11454",
              trains="scales, head", requires=("qkv",),
              knobs=(RATE,)),
        _spec("boft", "boft:ButterflyFinetuning",
              "Rotates the weights by products of small rotations.", "arXiv:2311.06243",
              trains="rotations, head", requires=("qkv",),
              knobs=(RATE,)),
        _spec("adapter", "adapter:Adapters",
              "A small bottleneck behind every MLP.", "arXiv:1902.00751",
              trains="adapters, head", requires=("blocks",), mergeable=False,
              knobs=(RATE, Knob("reduction", values=(4, 8, 16)))),
        _spec("moa", "moa:MixtureOfAdapters",
              "Low-rank experts of several ranks, one a token.", "arXiv:2310.11031",
              version=2, trains="experts, routers, head", requires=("qkv",), mergeable=False,
              knobs=(RATE,)),
        _spec("visual-prompt", "visual_prompt:VisualPrompt",
              "A learned border around every image; the model stays.", "arXiv:2203.17274",
              version=2,
              trains="border", mergeable=False,
              presets={"paper": {"lr": 1e-3, "start": "noise"}}, fixes=("lr",),
              knobs=(Knob("lr", 0.1, 100.0),)),
        _spec("vpt", "vpt:VisualPromptTuning",
              "Learned tokens in a frozen transformer.", "arXiv:2203.12119",
              version=2,
              trains="prompts, head", requires=("blocks",), mergeable=False,
              knobs=(Knob("lr_scale", 1.0, 100.0), Knob("tokens", values=(1, 5, 10, 50)))),
        _spec("nmtune", "nmtune:NoisyModelTuning",
              "A residual net behind frozen features.", "arXiv:2309.17002",
              version=2, trains="residual net, head", mergeable=False, fixes=(*ADAMW, "epochs"),
              knobs=(Knob("lr", 1e-4, 1e-2), Knob("mse", 0.1, 10.0))),
        # Near the pretrained weights
        _spec("l2-sp", "l2_sp:L2SP",
              "Weight decay towards the pretrained weights.", "arXiv:1802.01483",
              knobs=(RATE, Knob("alpha", 0.01, 10.0))),
        _spec("l1-sp", "l1_sp:L1SP",
              "Charges every weight for the distance it moves.",
              "arXiv:1802.01483; arXiv:2405.16027", version=2,
              knobs=(RATE, Knob("alpha", 0.1, 100.0))),
        _spec("ewc", "ewc:ElasticWeightConsolidation",
              "Holds on to weights in proportion to their Fisher information.",
              "arXiv:1612.00796", version=3, reads=("{data}",),
              presets={"paper": {"fisher": "identity", "lambda": 2.0}},
              knobs=(RATE, Knob("lambda", 0.01, 10.0))),
        _spec("mas", "mas:MemoryAwareSynapses",
              "Holds on to weights that the logits are sensitive to.", "arXiv:1711.09601",
              reads=("{data}",),
              knobs=(RATE, Knob("lambda", 0.01, 10.0))),
        _spec("si", "si:SynapticIntelligence",
              "Holds on to weights that did most for the old task.", "arXiv:1703.04200",
              reads=("{old}",),
              knobs=(RATE, Knob("c", 0.01, 10.0))),
        _spec("tpgm", "tpgm:TrainableProjection",
              "Learns on held-out images how far each layer may go.", "arXiv:2303.10720",
              version=2, trains="radii", needs=("{base}",), holds_out=0.2,
              knobs=(RATE, Knob("lr", 1e-3, 1e-1))),
        _spec("ftp", "ftp:FastTrainableProjection",
              "Projects every update to radii learned along the way.", "arXiv:2310.19182",
              knobs=(RATE, Knob("k", 0.0, 1.0, log=False))),
        # Near the pretrained answers or features
        _spec("lwf", "lwf:LearningWithoutForgetting",
              "Keeps the pretrained model's soft answers on the new images.", "arXiv:1606.09282",
              presets={"paper": {"over": "task"}},
              knobs=(RATE, Knob("alpha", 0.1, 10.0), Knob("temperature", values=(1.0, 2.0, 4.0)))),
        _spec("feature-distill", "feature_distill:FeatureDistillation",
              "Keeps the pretrained features of the new images.", "arXiv:2405.16027",
              version=2,
              knobs=(RATE, Knob("lambda", 0.1, 100.0))),
        # Averages of checkpoints
        _spec("wise-ft", "wise_ft:WiseFT",
              "Averages the weights before and after fine-tuning.", "arXiv:2109.01903", version=3,
              trains="nothing", needs=("{base}",),
              knobs=(RATE, Knob("alpha", 0.1, 0.9, log=False))),
        _spec("soup", "soup:UniformSoup",
              "Averages the weights of several methods' checkpoints.", "arXiv:2203.05482",
              version=3, trains="nothing", needs=("*{members}",),
              knobs=(RATE,)),
        _spec("greedy-soup", "greedy_soup:GreedySoup",
              "Averages the checkpoints that help on held-out images.", "arXiv:2203.05482",
              version=2, trains="nothing", needs=("*{members}",), holds_out=0.2,
              knobs=(RATE,)),
        _spec("model-stock", "model_stock:ModelStock",
              "From θ₀ towards the mean of two fine-tunings.", "arXiv:2403.19522",
              version=2, trains="nothing", needs=("*{members}",),
              knobs=(RATE,)),
        _spec("best-of", "best_of:BestOf",
              "Chooses among checkpoints on held-out images (--search).", "arXiv:2007.01434",
              trains="nothing", needs=("*{members}",), holds_out=0.2, chooses=True),
        # With the words of CLIP
        _spec("flyp", "flyp:FinetuneLikeYouPretrain",
              "CLIP's contrastive loss on images and prompts.", "arXiv:2212.00638",
              trains="both towers", requires=("text-tower",), fixes=ADAMW,
              knobs=(Knob("lr", 1e-6, 1e-4),)),
        _spec("carot", "carot:CalibratedRobustFinetuning",
              "FLYP with an orthogonal projection and a teacher.", "arXiv:2311.01723",
              version=2, trains="both towers", requires=("text-tower", "projection"), fixes=ADAMW,
              knobs=(Knob("lr", 1e-6, 1e-4), Knob("distillation", 0.1, 10.0))),
        _spec("lipsum-ft", "lipsum_ft:LipsumFineTuning",
              "Keeps the image's logits against random texts.", "arXiv:2404.00860",
              requires=("text-tower",),
              knobs=(RATE, Knob("lambda", 0.1, 10.0))),
    ]  # fmt: skip
