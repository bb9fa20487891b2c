"""The conformance suites, for whoever writes a provider.
"""
