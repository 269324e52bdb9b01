"""The promises of docs, one test for each."""
