"""DeepSeek-VL2: a model of ours, whose model type it shares with models that see in other ways."""

from typing import Any

from mopeq_hub.families.base import Family


class _DeepseekVL2(Family):
    def trouble_with(self, config: dict[str, Any]) -> str:
        from mopeq_hub.modeling.deepseek_vl2.configuration_deepseek_vl2 import trouble_with

        return trouble_with(config)


DEEPSEEK_VL2 = _DeepseekVL2("deepseek_vl_v2")
