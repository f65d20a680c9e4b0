"""Channel equalisation."""


def equalise(graph, placer, samples):
    return None
