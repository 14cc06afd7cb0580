"""Systems of further papers, as plug-ins that use only tiaft's hooks and public API."""
