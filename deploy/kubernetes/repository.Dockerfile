# A standalone rendering as an image, which pods copy it from:
#
#   docker build -t committee-repository -f deploy/kubernetes/repository.Dockerfile build/compose/model_repository
FROM busybox:1.37
COPY . /repository
USER 1000
