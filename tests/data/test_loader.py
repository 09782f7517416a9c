import pytest
from batch_contents import unpacked

from din_jax.data import source as source_module
from din_jax.data.loader import batches
from din_jax.data.source import BatchSource


@pytest.mark.parametrize("chunk_samples", [8, 24, 2048])  # an epoch has 8 batches: 1, 3, 8 a chunk
def test_an_iterator_begins_where_it_is_told(rich, chunk_samples, monkeypatch):
    monkeypatch.setattr(source_module, "_CHUNK_SAMPLES", chunk_samples)
    source = BatchSource(rich[0], "train", 8, epochs=2)
    whole = [unpacked(source[i]) for i in range(len(source))]
    for start in range(len(source) + 1):
        assert [unpacked(b) for b in batches(source, start)] == whole[start:]
