// Package compose tests deploy/compose.yaml on a real engine.
//
// The engine is a dockerd of the test's own, which touches nothing of the machine's: it runs in a network and mount namespace (lab/internal/netns) and in a
// process namespace, so "the host's network" of the file is that namespace's, and all containers are gone when the test is, however it ends. What is left
// behind when it is killed is one directory below the temporary one, and cgroups without a process.
//
// In there is no registry, nor any other network: lab/internal/standin makes what the images are built from, and NATS. The images of wgherald are built by its own
// Dockerfiles.
//
// It takes dockerd, docker and docker compose, or docker-compose: Debian's docker.io and docker-compose will do.
package compose
