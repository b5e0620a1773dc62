"""The encoding engine: texts in, vectors out; used by evaluation, mining, bulk jobs and the endpoint."""
