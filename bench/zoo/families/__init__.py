"""The families by domain, as data; `bench.zoo.registry` collects them."""
