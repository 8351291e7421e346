"""A genotype as a drawing: boxes and arrows for the report."""

from typing import Any

from segue.models.compact import MAPS, OPERATIONS, Genotype
from segue.runs.sections import Block

Node = tuple[str, float, float]  # name, column, row


def picture(genotype: Genotype) -> list[Block]:
    """Two drawings: the cell, and which maps its copies join."""
    return [{"graph": _cell(genotype)}, {"graph": _decoder(genotype)}]


def _cell(genotype: Genotype) -> dict[str, Any]:
    """Node n_k of the genotype is box k; the last box is the sum of what no layer takes."""
    nodes: list[Node] = [("input", 0, 0), (OPERATIONS[genotype.first], 0, 1)]
    edges = [(0, 1)]
    for k, (p, q, a, c) in enumerate(genotype.layers):
        row, number = 2 + 2 * k, len(nodes)
        nodes += [(OPERATIONS[a], -1, row), (OPERATIONS[c], 1, row), ("+", 0, row + 1)]
        edges += [(p, number), (q, number + 1), (number, number + 2), (number + 1, number + 2)]
    nodes.append(("output: sum", 0, 2 + 2 * len(genotype.layers)))
    edges += [(node, len(nodes) - 1) for node in genotype.collected()]
    return {"title": "The cell that was found", "nodes": nodes, "edges": edges}


def _decoder(genotype: Genotype) -> dict[str, Any]:
    """Encoder maps in a row, then the blocks, each of two cells, then the classifier."""
    nodes: list[Node] = [(f"1/{4 << level}", level - (MAPS - 1) / 2, 0) for level in range(MAPS)]
    edges: list[tuple[int, int]] = []
    for b, (i, j) in enumerate(genotype.blocks):
        edges += [(i, len(nodes)), (j, len(nodes))]
        nodes.append((f"block {b + 1}: cell + cell", 0, 1 + b))
    nodes.append(("classes", 0, 1 + len(genotype.blocks)))
    edges += [(MAPS + b, len(nodes) - 1) for b in genotype.loose()]
    return {"title": "Where it is used: maps of the encoder, by stride", "nodes": nodes, "edges": edges}
