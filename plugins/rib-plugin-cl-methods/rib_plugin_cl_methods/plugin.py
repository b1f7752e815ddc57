"""What this distribution offers. Light: nothing here imports torch."""

from rib_harness import MethodSpec, hookimpl

RIB_PLUGIN_API = 1


@hookimpl
def register_methods() -> list[MethodSpec]:
    """Tier 1 of the methods that the benchmark's readers compare with."""
    return [
        MethodSpec(
            name="ft",
            target="rib_plugin_cl_methods.ft:FineTuning",
            summary="Plain fine-tuning of all parameters; the baseline.",
            citation="arXiv:2410.21582",
            license="Apache-2.0",
        ),
        MethodSpec(
            name="lp",
            target="rib_plugin_cl_methods.lp:LinearProbing",
            summary="Trains the head only, on features computed once.",
            citation="arXiv:2202.10054",
            license="Apache-2.0",
            trains="head",
        ),
        MethodSpec(
            name="lp-ft",
            target="rib_plugin_cl_methods.lp_ft:LinearProbingFineTuning",
            summary="Linear probing, then fine-tuning from that head.",
            citation="arXiv:2202.10054",
            license="Apache-2.0",
            needs=("{lp}",),
        ),
        MethodSpec(
            name="l2-sp",
            target="rib_plugin_cl_methods.l2_sp:L2SP",
            summary="Weight decay towards the pretrained weights.",
            citation="arXiv:1802.01483",
            license="Apache-2.0",
        ),
        MethodSpec(
            name="ewc",
            target="rib_plugin_cl_methods.ewc:ElasticWeightConsolidation",
            summary="Holds on to weights in proportion to their Fisher information.",
            citation="arXiv:1612.00796",
            license="Apache-2.0",
            presets={"paper": {"fisher": "identity", "lambda": 2.0}},
        ),
        MethodSpec(
            name="lwf",
            target="rib_plugin_cl_methods.lwf:LearningWithoutForgetting",
            summary="Keeps the pretrained model's soft answers on the new images.",
            citation="arXiv:1606.09282",
            license="Apache-2.0",
            presets={"paper": {"over": "task"}},
        ),
        MethodSpec(
            name="wise-ft",
            target="rib_plugin_cl_methods.wise_ft:WiseFT",
            summary="Averages the weights before and after fine-tuning.",
            citation="arXiv:2109.01903",
            license="Apache-2.0",
            trains="nothing",
            needs=("{base}",),
        ),
        MethodSpec(
            name="soup",
            target="rib_plugin_cl_methods.soup:UniformSoup",
            summary="Averages the weights of several methods' checkpoints.",
            citation="arXiv:2203.05482",
            license="Apache-2.0",
            trains="nothing",
            needs=("{members}",),
        ),
    ]
