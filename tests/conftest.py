import gc


def pytest_collection_finish(session):
    # What the imports made is never garbage; to look through it takes a tenth
    # of the suite's time.
    gc.freeze()
