class Placement: ...


def parse_placement(value: str) -> Placement | None:
    return None
