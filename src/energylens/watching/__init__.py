"""Joules of a running server, beside what the law says that they should be.

``counters`` knows what vLLM and SGLang call their
numbers, ``windows`` makes two looks and a meter's readings into one window, ``expecting`` says
what the law expects of it, ``drift`` watches the ratio of both, ``watcher`` goes round, and
``publishing`` gives all of it to Prometheus. ``vllm_plugin`` does the same inside of vLLM.
"""
