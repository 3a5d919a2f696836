"""Small kernels for the tests of `bench.aot`: one is as it should be, the others have one fault each."""
