import pytest

from tests.data.vocabularies import SHARED, built_in, gpt2, stories


@pytest.fixture(params=[built_in, stories, gpt2], ids=lambda make: make.__name__, scope="module")
def tokenizer(request):
    if request.param is not built_in and not SHARED.is_dir():
        pytest.skip("no ../shared")
    return request.param()
