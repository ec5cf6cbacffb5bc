"""YAML as it is read everywhere here: in files of settings, and in the text of an option."""

import re
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
      ValueError: it is no YAML, or a key is given twice; the message says where.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except Exception as error:
        # PyYAML raises not only its own errors, but a dozen others on invalid dates, numbers and tags.
        raise ValueError(" ".join(str(error).split())) from None


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises an error if a key is given twice; SafeLoader itself silently takes the last value."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Read a number as the command line does: YAML 1.1 alone takes 010 for 8, and 1:30 for 90."""
        text = str(node.value)
        if ":" in text or re.fullmatch(r"[-+]?0[0-9_bx][0-9A-Fa-f_]*", text):
            return text
        return (self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float)(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            # A merge key may repeat the keys that it merges; the base class refuses a key that is no scalar.
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


for _kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _StrictLoader.construct_number)
