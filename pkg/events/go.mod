module github.com/wgherald/wgherald/pkg/events

go 1.24
