"""Call every operation of the OpenAPI document with valid and invalid input.

If there is a log-in, define a fixture `contract_headers` in tests/fixtures.py with its headers.
"""

import pytest

from tests.harness.contract import Contract, check_operation, operations

LEFT_OUT: set[str] = set()
"""The operations not to call, such as "POST /payments"."""


@pytest.mark.timeout(180)  # a few hundred requests
def test_every_operation_answers_as_declared(
    contract: Contract, contract_headers: dict[str, str], subtests: pytest.Subtests
) -> None:
    for operation in operations(contract):
        if operation.label not in LEFT_OUT:
            with subtests.test(operation.label):
                check_operation(operation, contract_headers)
