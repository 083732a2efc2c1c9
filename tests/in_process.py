"""Mining without Ray."""


class Here:
    """Stands in for `Remote`: each call is done at once, and references are the values themselves."""

    def put(self, value):
        return value

    def get(self, value):
        return value

    node_cpus = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, function, *arguments, returns=1, cpus=1):  # noqa: ARG002
        found = list(function(*arguments))
        assert len(found) == returns
        return found

    def expect(self, progress):
        pass

    def wait(self):
        pass
