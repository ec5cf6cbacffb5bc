"""The parts of Kubernetes' JobSet, Job and Pod that launch/gke_jobset.yaml uses; anything else is refused.

jobset.x-k8s.io/v1alpha2, batch/v1 and v1. Key names are the API's.
"""

# ruff: noqa: N815

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A DNS label (RFC 1123); a label's key with its optional prefix; a quantity of whole devices.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Path = Annotated[str, Field(pattern=r"^/[^:]*$")]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExitCodes(Part):
    containerName: Name
    operator: Literal["In", "NotIn"]
    values: list[Annotated[int, Field(ge=1, le=255)]]


class PodFailureRule(Part):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: ExitCodes


class PodFailurePolicy(Part):
    rules: list[PodFailureRule]


class ClaimSource(Part):
    claimName: Name


class EmptyDirectory(Part):
    medium: Literal["", "Memory"]


class Volume(Part):
    name: Name
    persistentVolumeClaim: ClaimSource | None = None
    emptyDir: EmptyDirectory | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Volume":
        if (self.persistentVolumeClaim is None) == (self.emptyDir is None):
            raise ValueError("a volume has one source")
        return self


class Mount(Part):
    name: Name
    mountPath: Path


class Variable(Part):
    name: VariableName
    value: str


class Resources(Part):
    limits: dict[LabelKey, Quantity]


class Container(Part):
    name: Name
    image: Annotated[str, Field(min_length=1)]
    command: list[str]
    args: list[str]
    env: list[Variable]
    resources: Resources
    volumeMounts: list[Mount]


class PodSecurityContext(Part):
    fsGroup: Annotated[int, Field(ge=0)]


class PodSpec(Part):
    # With a policy on failed pods, Kubernetes accepts no other.
    restartPolicy: Literal["Never"]
    securityContext: PodSecurityContext
    terminationGracePeriodSeconds: Annotated[int, Field(ge=0)]
    nodeSelector: dict[LabelKey, LabelValue]
    volumes: list[Volume]
    containers: Annotated[list[Container], Field(min_length=1)]


class PodTemplate(Part):
    spec: PodSpec


class JobSpec(Part):
    completionMode: Literal["Indexed"]
    parallelism: Count
    completions: Count
    backoffLimit: Annotated[int, Field(ge=0)]
    podFailurePolicy: PodFailurePolicy
    template: PodTemplate


class JobTemplate(Part):
    spec: JobSpec


class ReplicatedJob(Part):
    name: Name
    replicas: Count
    template: JobTemplate


class FailureRule(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:-]{0,126}[A-Za-z0-9_])?$")]
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[
        Literal[
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        ]
    ]


class FailurePolicy(Part):
    maxRestarts: Annotated[int, Field(ge=0)]
    rules: list[FailureRule]


class JobSetSpec(Part):
    failurePolicy: FailurePolicy
    replicatedJobs: Annotated[list[ReplicatedJob], Field(min_length=1)]


class Metadata(Part):
    name: Name


class JobSet(Part):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec
